"""Precision is what was asked: conversion of a graph, the range of its numbers, and what its engines compute in."""

import onnx_ir as ir

TYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""ONNX's type of each precision that can be asked for."""
