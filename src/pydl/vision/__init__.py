"""What detection and segmentation compute beside their networks: boxes, labels of anchors, losses, measures."""
