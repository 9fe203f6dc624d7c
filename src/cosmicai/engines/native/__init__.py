"""The project's own CPU engine: the transformer in C++, written for this network; everything else in OpenVINO."""
