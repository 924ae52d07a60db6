"""Names that a user chooses from, apart from what they choose.

``ros2 launch`` reads the parameters with apt's own Python, which may have neither torch nor FAISS.
"""

from __future__ import annotations

MODES = ("single", "belief")
SEARCHES = ("auto", "exact", "approximate")
