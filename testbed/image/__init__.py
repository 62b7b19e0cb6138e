"""The device image: this host's Python packages on a small Debian; `lab image`.

`recipe.py` says what goes into it and names it after that; `packages.py` gathers it; `build.py`
builds it.
"""

from testbed.image.recipe import image_tag as image_tag
