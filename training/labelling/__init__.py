"""Semantic labels of sessions from a segmentation network of the user's choice, in StructVPR's six classes."""
