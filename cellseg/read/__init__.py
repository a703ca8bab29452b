"""From a folder of images and masks to arrays and COCO annotations."""
