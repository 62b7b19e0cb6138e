"""The authors' own implementation, predicted: memory and times of a device from a model's shape."""
