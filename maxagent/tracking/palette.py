"""One colour per role, shared by the report and the terminal, and the colours of everything else that is drawn."""

from __future__ import annotations

import dataclasses

from maxagent.traces.schema import Role


@dataclasses.dataclass(frozen=True)
class RoleColour:
  """A role's colour on a light page, on a dark page, and as the terminal's own named colour.

  The terminal gets a name, not a hex value, because only the terminal knows whether its background is light or dark.
  """

  light: str
  dark: str
  terminal: str


# Red is left out on purpose: it means "failed" everywhere and nothing else.
ROLE_COLOURS: dict[str, RoleColour] = {
  "web": RoleColour("#5b6776", "#9aa7b8", "default"),
  "system": RoleColour("#46515f", "#b4bfcc", "bright_black"),
  "tools": RoleColour("#7a6540", "#cdb98c", "bright_black"),
  "goal": RoleColour("#1f5fd0", "#82aaff", "bright_blue"),
  "user": RoleColour("#0b73a8", "#62c4f2", "blue"),
  "plan": RoleColour("#6b3fd4", "#b9a2ff", "magenta"),
  "think": RoleColour("#92309c", "#dd95e8", "bright_magenta"),
  "call": RoleColour("#0c7c73", "#4fd0c3", "cyan"),
  "args": RoleColour("#1e8a5a", "#74d8a4", "bright_cyan"),
  "obs": RoleColour("#96690a", "#e2bd5e", "yellow"),
  "back": RoleColour("#bd5b12", "#f7a35f", "bright_yellow"),
  "reflect": RoleColour("#c03a86", "#f590c8", "bright_magenta"),
  "say": RoleColour("#127a94", "#6fd3ea", "bright_cyan"),
  "answer": RoleColour("#4f7d12", "#aedb62", "green"),
  "marker": RoleColour("#8a929d", "#767f8b", "bright_black"),
  "pad": RoleColour("#b5bbc3", "#565e69", "bright_black"),
}
FAILED_TERMINAL = "bold red"

# Sources, families and phases take these in order; told apart in lightness too, for readers who do not see hue.
_SERIES = (
  ("#2563c9", "#79a8ff"), ("#d2691e", "#f5a05a"), ("#13896b", "#52cfab"), ("#a23b8f", "#e58ad6"),
  ("#8a7a12", "#d6c453"), ("#5546b8", "#a79bff"), ("#3f7f9f", "#7cc6e6"), ("#9a4b3c", "#e39a8b"),
  ("#6b8e23", "#b6d66a"), ("#c2456b", "#f58fac"), ("#1f8a8a", "#5fd3d3"), ("#7d5ba6", "#c4a6ea"),
)  # fmt: skip
SERIES_COUNT = len(_SERIES)


def role_colour(role: str) -> str:
  """The CSS expression of a role's colour, such as `var(--role-call)`."""
  return f"var(--role-{role})"


def series_colour(index: int) -> str:
  """The CSS expression of the n-th series' colour; it repeats after `SERIES_COUNT`."""
  return f"var(--series-{index % SERIES_COUNT})"


def css_variables(theme: str) -> str:
  """Every colour as a CSS custom property, for the theme "light" or "dark"."""
  dark = theme == "dark"
  roles = [f"--role-{name}: {c.dark if dark else c.light};" for name, c in ROLE_COLOURS.items()]
  series = [f"--series-{n}: {pair[dark]};" for n, pair in enumerate(_SERIES)]
  return " ".join(roles + series)


def terminal_style(role: str | Role) -> str:
  """The rich style of a role, by name or id."""
  return ROLE_COLOURS[role if isinstance(role, str) else Role(role).name.lower()].terminal
