"""ONNX graphs: facts about their values, symbolic shapes, writing nodes, and the laws that keep a graph's meaning.

The ground floor of the graph work, on which imports go one way: `graph <- lower <- fuse`.
"""
