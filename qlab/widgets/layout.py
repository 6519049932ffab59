"""How wide an explorer is: as wide as its drawings, and never wider than the page."""

import ipywidgets

WIDE = ipywidgets.Layout(width="760px", max_width="100%")
