"""What the studio looks like: Gradio blocks, and the HTML in them."""
