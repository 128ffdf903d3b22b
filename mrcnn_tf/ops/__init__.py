"""Pure TensorFlow functions: tensors in, tensors out. No Keras, no configuration, no variables."""
