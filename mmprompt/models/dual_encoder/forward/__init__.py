"""The frozen-tower forward: text and vision, over views of the library's own blocks."""
