"""What `disue compare` computes and shows: cells, tables and plots."""
