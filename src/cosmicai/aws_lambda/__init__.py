"""What the image's functions do on AWS Lambda."""
