"""The Hugging Face Hub: what is asked of it, how it is asked again, and how long it is waited for."""
