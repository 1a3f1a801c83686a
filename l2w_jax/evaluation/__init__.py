"""What a trained network is worth: its answers, and the tables made of them; draws nothing."""
