"""What runs with mmengine's Runner."""
