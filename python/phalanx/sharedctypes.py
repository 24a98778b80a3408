"""``multiprocessing.sharedctypes`` itself, under this package's name."""

import sys
from multiprocessing import sharedctypes
from multiprocessing.sharedctypes import *  # noqa: F403

sys.modules[__name__] = sharedctypes
