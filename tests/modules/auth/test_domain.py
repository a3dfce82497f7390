"""Rules of auth."""

import pytest

from app.modules.auth.domain.actors import InvalidUsername, WeakPassword, checked_password, username_key


@pytest.mark.parametrize("username", ["root", "a.b_c-d@e+f", "Ünal", "x" * 64, "名前名"])
def test_usernames_of_letters_and_a_few_signs_are_accepted(username: str) -> None:
    assert username_key(username)


@pytest.mark.parametrize(
    "username",
    ["", "ab", "x" * 65, "a b c", "a\0bc", "a\u200bbc", "<root>", "r\u043eot", "\u03b1dmin", "\ud800abc", "ﷺ" * 20],
)
def test_other_usernames_are_refused(username: str) -> None:
    with pytest.raises(InvalidUsername):
        username_key(username)


def test_spellings_of_one_username_share_a_key() -> None:
    assert username_key("ROOT") == username_key("root") == username_key("\uff52\uff4f\uff4f\uff54")
    assert username_key("straße") == username_key("STRASSE")


def test_a_password_is_hashed_in_one_normal_form() -> None:
    assert checked_password("pa\u0308ssword", "root") == "p\u00e4ssword"


@pytest.mark.parametrize("password", ["short77", "x" * 257, "my-ROOT-password", "null\0null", "\ud800surrogate"])
def test_weak_passwords_are_refused(password: str) -> None:
    with pytest.raises(WeakPassword):
        checked_password(password, "root")
