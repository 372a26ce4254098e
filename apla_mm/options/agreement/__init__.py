"""Settings of a config that must agree, compared before a runner is built.

A rule is a function of a config that gives the problems that it finds; each group of them is a file here. To add one,
write it and put it into its file's ``RULES``.
"""

from .check import DisagreementError, check_agreement
from .problems import Problem

__all__ = ["DisagreementError", "Problem", "check_agreement"]
