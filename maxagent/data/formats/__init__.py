"""How documents are rewritten on their way into rows: structural infill, fill-in-the-middle, decision records, fakes.

What happens to a chunk is a `Recipe`, drawn from the number of its record, so that a restart repeats it exactly. The recipe
knows how many tokens it adds before any token is read: rows are planned from it by every process alike. Permutations keep the
multiset of the document's tokens; augmentations only add; every added token carries the flag ADDED, which weighs nothing (but
for the turning back from a fake, which is a DECISION as well).
"""

from maxagent.data.formats.recipe import PLAIN, SENTINELS, Recipe, choose_text, choose_trace
from maxagent.data.formats.rewrite import rewrite

__all__ = ["PLAIN", "SENTINELS", "Recipe", "choose_text", "choose_trace", "rewrite"]
