"""Numbers from captions: likeness to references and to the image, and what they keep to."""
