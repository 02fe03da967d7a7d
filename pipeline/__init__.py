"""The steps from images to a fine-tuned net, its features and a report; each a function and a command."""
