"""What runs at the edge."""
