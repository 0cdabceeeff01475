"""What a picture of each attention is made of: its nodes before and after, its weights, what it hides, its errors.

Everything here is measured once, when a folder is built, and kept in pictures.json; a view only draws.
"""
