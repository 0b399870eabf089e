"""Keys are replaced in foreign text, and a model's own words are not."""

from __future__ import annotations

import pytest

from fgrpo.config import load
from fgrpo.inference import addresses, redaction
from fgrpo.inference.connection import ServedModel, connect, key_of

TEXT = "The preview shows a cup; the secret is unused. EMPTY <answer>A</answer>"
KEY = "sk-9f8e7d6c5b4a3210"


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_KNOWN", set())


@pytest.mark.parametrize(
    "query", ["api-version=preview", "mode=answer", "key=secret", "deployment=preview%20shows%20a", "sig="]
)
def test_words_of_an_address_stay_in_a_models_text(query: str) -> None:
    connect(f"https://host/openai/v1?{query}", "EMPTY", 10)
    assert redaction.redact(TEXT) == TEXT


@pytest.mark.parametrize(
    "name",
    ["key", "api_key", "api-key", "subscription-key", "access_token", "sig", "X-Amz-Signature", "code", "password"],
)
def test_a_key_in_a_query_is_replaced(name: str) -> None:
    connect(f"https://host/v1?api-version=2024-10-21&{name}={KEY}", "EMPTY", 10)
    assert redaction.redact(f"refused {KEY} of 2024-10-21") == "refused *** of 2024-10-21"


@pytest.mark.parametrize("placeholder", ["EMPTY", "unused", "secret", "none", "not-needed"])
def test_a_placeholder_is_no_key(placeholder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", placeholder)
    key_of(ServedModel("judge", "m", "a", "b", "c", "THE_KEY"), None)
    assert redaction.redact(TEXT) == TEXT


def test_a_record_for_others_has_no_key_of_an_address() -> None:
    endpoint = f'["https://me:{KEY}@host/v1?api_key={KEY}#x"]'
    config = load("mini", overrides=[f"engine.endpoints={endpoint}", f"judges.training.endpoints={endpoint}"])
    plain = addresses.without_keys(config)
    assert KEY not in str(plain)
    assert plain["engine"]["endpoints"] == plain["judges"]["training"]["endpoints"] == ["https://host/v1"]
    assert plain["rl"] == config.model_dump(mode="json")["rl"]
