// What works better with a script: copying commands, relative times that go on, batches that continue by themselves,
// and a page that says when it is no longer live.
"use strict";

const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

function relative(moment) {
  const seconds = Math.trunc((moment - Date.now()) / 1000);
  const distance = Math.abs(seconds);
  if (distance > 100 * 86400) return null;
  if (distance < 1) return "now";
  const [unit, size] = UNITS.find(([, size]) => distance >= size);
  const text = `${Math.trunc(distance / size)} ${unit}`;
  return seconds > 0 ? `in ${text}` : `${text} ago`;
}

function refresh() {
  for (const time of document.querySelectorAll("main time")) {
    const text = relative(Date.parse(time.dateTime));
    if (text !== null && time.textContent !== text) time.textContent = text;
  }
}

async function copied(button) {
  const text = button.parentElement.querySelector("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(button.parentElement.querySelector("code"));
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

document.documentElement.classList.add("js");
document.addEventListener("click", (event) => {
  const button = event.target.closest?.("button.copy");
  if (button) copied(button);
  for (const open of document.querySelectorAll("details.actions[open], details.who[open]")) {
    if (!open.contains(event.target)) open.open = false;
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const open of document.querySelectorAll("details.actions[open], details.who[open]")) {
    open.open = false;
    if (open.contains(document.activeElement)) open.querySelector("summary").focus();
  }
});
document.addEventListener("end", () => location.reload());
setInterval(refresh, 5000);

// each tick of the stream says something, so silence means that what is shown may be old
const live = document.querySelector("#live[hx-sse\\:connect]");
let heard = Date.now();
document.addEventListener("htmx:sse:after:message", () => { heard = Date.now(); });
document.addEventListener("visibilitychange", () => { heard = Date.now(); });
if (live) {
  setInterval(() => {
    const isOld = !document.hidden && Date.now() - heard > 10000;
    document.getElementById("old").hidden = !isOld;
    if (isOld) live.dispatchEvent(new Event("connect")); // does nothing while there is a stream, or one waits to reconnect
  }, 1000);
}

const narrow = matchMedia("(max-width: 60rem)");
const pages = document.querySelector("details.pages");
const fold = () => { if (pages) pages.open = !narrow.matches; };
narrow.addEventListener("change", fold);
fold();
document.querySelector("form[data-goes-on]")?.requestSubmit();
