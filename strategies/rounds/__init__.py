"""What happens in a round, whatever the method: clients, messages, replies, sums, counts."""
