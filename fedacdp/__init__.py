"""fedacdp: federated simulation of algorithmic collective action under local and central differential privacy."""

__version__ = "0.1.0"
