"""Fixed pools of short common words, disjoint, so that a small vocabulary holds each in one or two pieces."""

from __future__ import annotations

# Values, keys, aliases, folders and files: one pool, so that learning to copy one kind of word helps the others.
DATA: tuple[str, ...] = tuple(
  """
  apple arrow badge basil beach bench berry birch blade brick bridge brook brush butter cabin candle canyon castle cedar
  chain chalk cherry cliff cloud clover coal coast comet copper coral cotton crane creek crown daisy dawn desert
  dove dragon dune eagle earth ember falcon fern fig flame flint flute forest fossil frost garden garlic ginger
  glove gold grape grass gravel harbor hazel hedge heron hill honey horse ice iris iron island ivory ivy jade
  jasmine jungle kite ladder lake lava leaf lemon lily lion lotus maple marble meadow melon mint mirror mist moon moss
  nest north nut oak oasis ocean olive onion opal orange orchid otter owl palm panda paper peach pearl pebble pepper
  pine planet plum pond poppy quartz rabbit rain raven reef rice ridge river robin rock rose ruby sand shadow shell
  silk silver sky snow spark spring star steel stone storm summer sun swan tiger timber tin tulip turtle valley velvet
  violet walnut water wave wheat willow wind winter wolf wood wool
  """.split()
)

# Tool names are VERB_NOUN. Neither half says what the tool does: the schema's `does` must be read.
VERBS: tuple[str, ...] = tuple(
  """
  ask bring cast check draw drive fetch find grab hand help hold join jump kick lift make move pass pick play pull push
  run send show spin swap take turn walk work
  """.split()
)
NOUNS: tuple[str, ...] = tuple(
  """
  area band base block board book box card case cell club deck desk door drum frame game gate grid group hall house lane line
  mark page part plan room seat team unit
  """.split()
)
