"""Which logical axis lies on which mesh axis, and processes in lockstep."""

from maxagent.parallel.mesh import AXES, make_mesh
from maxagent.parallel.rules import RULES, Layout, check_model_fits, spec

__all__ = ["AXES", "RULES", "Layout", "check_model_fits", "make_mesh", "spec"]
