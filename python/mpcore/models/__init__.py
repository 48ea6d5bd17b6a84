"""Everything that touches torch models. Importing this package imports torch."""
