"""Evaluation of patch features: splits with a value per pixel, features of many sizes in one pass, and their tasks."""
