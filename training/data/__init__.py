"""Keyframes of many sessions as one training set: pairing by place, batches, augmentation."""
