"""Keras models and layers, one file per stage of the paper; `mask_rcnn` wires them."""
