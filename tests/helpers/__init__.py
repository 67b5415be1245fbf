"""What tests share: tiny networks, published numbers, engines that stand in for real ones."""
