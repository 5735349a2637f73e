"""What is made of finished runs. It reads run folders and calls nothing below but what it needs to show them."""
