"""What the audit of each attempt found. Import the module that holds the noun you need."""
