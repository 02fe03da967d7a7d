"""What happens to images between record and blob."""
