"""What native TensorRT refuses: the plugin operator as data (`contract`), and later its kernels and registration."""
