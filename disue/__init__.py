"""DisUE: clustered federated learning with a distilled universal expert, on Flower."""

__version__ = "0.1.0"
