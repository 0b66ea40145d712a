"""A third party's plugin: the layer type Xyz with its xyz_param."""
