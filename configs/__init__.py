"""The shipped configurations; `mrcnn_tf.load_config(name)` reads them."""
