from __future__ import annotations

import json
import random
import string

import pytest

from maxagent.data.safety.secrets import SecretScanner
from maxagent.data.source_items import SourceDocument
from maxagent.data.sources import SourceTrace
from maxagent.traces.schema import Segment, Trace

_CHANCE = random.Random(3)
_LETTERS = string.ascii_letters + string.digits


def _some(count: int, letters: str = _LETTERS) -> str:
  return "".join(_CHANCE.choice(letters) for _ in range(count))


# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
  "aws_access_token": "AKIA" + _some(16, string.ascii_uppercase + "234567"),
  "github_pat": "ghp" + "_" + _some(36),
  "github_fine_grained_pat": "github" + "_pat_" + _some(22) + "_" + _some(59),
  "openai_api_key": "sk" + "-proj-" + _some(74) + "T3Blbk" + "FJ" + _some(74),
  "anthropic_api_key": "sk" + "-ant-api03-" + _some(93) + "AA",
  "slack_bot_token": "xox" + "b-" + _some(12, string.digits) + "-" + _some(12, string.digits) + "-" + _some(24),
  "gcp_api_key": "AI" + "za" + _some(35),
  "gitlab_pat": "gl" + "pat-" + _some(20),
  "huggingface_access_token": "hf" + "_" + _some(34, string.ascii_letters),
  "jwt": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + _some(43),
  "private_key": "-----BEGIN RSA "
  + "PRIVATE KEY-----\n"
  + "\n".join(_some(64) for _ in range(9))
  + "\n-----END RSA PRIVATE KEY-----",
  "azure_account_key": "AccountKey=" + _some(86) + "==",
}


@pytest.fixture(scope="module")
def scanner() -> SecretScanner:
  return SecretScanner()


def redacted(scanner: SecretScanner, text: str) -> tuple[str, dict[str, int]]:
  item, counts = scanner.redact(SourceDocument(text, "here"))
  assert isinstance(item, SourceDocument) and item.origin == "here"
  return item.text, dict(counts)


def trace(*segments: Segment, **fields: object) -> Trace:
  return Trace(id="t", family="f", segments=segments, **fields)  # type: ignore[arg-type]


def redacted_trace(scanner: SecretScanner, record: Trace) -> tuple[Trace, dict[str, int]]:
  item, counts = scanner.redact(SourceTrace(record, "here", "maxagent"))
  assert isinstance(item, SourceTrace)
  return item.trace, dict(counts)


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_removed_named_and_counted(scanner: SecretScanner, kind: str) -> None:
  text, counts = redacted(scanner, f"Words before é,\nkey: {SECRETS[kind]}\nand after, twice: {SECRETS[kind]} .")
  assert SECRETS[kind].removeprefix("AccountKey=") not in text and counts == {kind: 2}
  before, after = "Words before é,\nkey: ", " ."
  assert text.startswith(before) and text.endswith(after) and text.count(f"[secret removed: {kind}]") == 2


def test_passwords_in_addresses_are_removed_and_placeholders_are_not(scanner: SecretScanner) -> None:
  text, counts = redacted(scanner, "postgres://bob:Xk29sLq8dd@db.example.com:5432/x and https://user:password@host")
  assert text.endswith("@db.example.com:5432/x and https://user:password@host") and "Xk29" not in text
  assert sum(counts.values()) == 1


def test_a_private_key_that_is_cut_off_is_removed_too(scanner: SecretScanner) -> None:
  text, counts = redacted(scanner, SECRETS["private_key"][:300])
  assert text == "[secret removed: private_key]" and counts == {"private_key": 1}


@pytest.mark.parametrize(
  "text",
  [
    "commit 3f786850e387550fdab836ed7e6dc881de23001b",
    "id 550e8400-e29b-41d4-a716-446655440000, sha256:" + "0123456789abcdef" * 4,
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQC7 user@host",
    "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA\n-----END PUBLIC KEY-----",
    "password = getpass.getpass(); token = os.environ['TOKEN']; api_key=YOUR_API_KEY",
    "Authorization: Bearer <token>",
  ],
)
def test_hashes_public_keys_and_placeholders_stay(scanner: SecretScanner, text: str) -> None:
  assert redacted(scanner, text) == (text, {})


def test_arguments_stay_json_and_keep_everything_else(scanner: SecretScanner) -> None:
  arguments = {"url": "https://x.y/?q=1", "key": SECRETS["private_key"], "n": 3, "nested": [{"token": SECRETS["github_pat"]}]}
  record = trace(
    Segment(role="goal", text="deploy"),
    Segment(role="call", text="put", args=json.dumps(arguments), step=1, status="ok"),
  )
  cleaned, counts = redacted_trace(scanner, record)
  assert json.loads(cleaned.segments[1].args or "") == {
    **arguments,
    "key": "[secret removed: private_key]",
    "nested": [{"token": "[secret removed: github_pat]"}],
  }
  assert counts == {"private_key": 1, "github_pat": 1} and cleaned.segments[0] == record.segments[0]


def test_a_secret_seen_once_is_removed_from_the_whole_trace(scanner: SecretScanner) -> None:
  token = SECRETS["github_pat"]
  record = trace(
    Segment(role="goal", text=f"use {token}"),
    Segment(role="think", text=f"the token is {token}"),
    Segment(role="call", text="login", args=json.dumps({token: [token, 1.5, None]})),
    Segment(role="obs", text=f"logged in as {token}"),
    goal=f"use {token}",
    tools=({"name": "login", "description": f"e.g. {token}"},),
  )
  cleaned, counts = redacted_trace(scanner, record)
  assert token not in cleaned.to_json() and counts == {"github_pat": 6}
  assert (cleaned.id, [s.role for s in cleaned.segments]) == ("t", [s.role for s in record.segments])


def test_arguments_that_are_no_json_are_text(scanner: SecretScanner) -> None:
  record = trace(Segment(role="call", text="sh", args=f"curl -H {SECRETS['github_pat']}"))
  assert redacted_trace(scanner, record)[0].segments[0].args == "curl -H [secret removed: github_pat]"


def test_a_clean_document_is_handed_back_as_it_is(scanner: SecretScanner) -> None:
  item = SourceTrace(trace(Segment(role="goal", text="nothing to hide")), "here", "maxagent")
  assert scanner.redact(item)[0] is item


def test_what_was_redacted_is_clean(scanner: SecretScanner) -> None:
  once, _ = redacted(scanner, "\n".join(SECRETS.values()))
  assert redacted(scanner, once) == (once, {})
