// Search and copy buttons; the page is complete without them.
"use strict";

const form = document.getElementById("find");
const query = document.getElementById("query");
const found = document.getElementById("found");
const nothing = document.getElementById("nothing");
const operations = [...document.querySelectorAll("details.operation")].map((element) => ({
  element,
  text: element.textContent.toLowerCase(),
}));
const features = [...document.querySelectorAll("section.feature")];

function search() {
  const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const { element, text } of operations) {
    element.hidden = !words.every((word) => text.includes(word));
    count += element.hidden ? 0 : 1;
  }
  for (const feature of features) {
    feature.hidden = !feature.querySelector("details.operation:not([hidden])");
  }
  found.textContent = words.length ? `${count} of ${operations.length}` : "";
  nothing.hidden = count > 0;
}

function reveal() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.matches("details")) {
    target.open = true;
    target.scrollIntoView();
  }
}

function withCopyButton(code) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  code.parentElement.before(button);
}

form.hidden = false;
form.addEventListener("submit", (event) => event.preventDefault());
query.addEventListener("input", search);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.ctrlKey && !event.metaKey && event.target !== query) {
    event.preventDefault();
    query.focus();
  } else if (event.key === "Escape" && event.target === query) {
    query.value = "";
    search();
  }
});
document.querySelectorAll("pre > code").forEach(withCopyButton);
document.addEventListener("toggle", ({ target }) => {
  if (target.open && target.matches("details.operation")) history.replaceState(null, "", `#${target.id}`);
}, true);
addEventListener("hashchange", reveal);
reveal();
search();
