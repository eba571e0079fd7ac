"""Writes ONNX files as TensorFlow Lite files, which LiteRT runs.

Google's converter, litert-torch 0.10, needs a torch before 2.15, JAX and transformers; a latency search converts dozens
of networks. This one takes the operations of convolutional networks, in fp32 and, from ONNX files
with pairs of QuantizeLinear and DequantizeLinear, in int8.
"""

from autoprune.runtimes.tflite.convert import convert

__all__ = ["convert"]
