"""The studio: a Gradio app that runs every task of a model, with spectrograms."""
