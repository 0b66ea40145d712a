"""A plugin for imae: the layer types Xyz and XyzLoss."""
