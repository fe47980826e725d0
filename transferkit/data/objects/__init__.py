"""Objects in pictures, as COCO, Pascal VOC and YOLO sets state them: read and checked. Read `layout` first."""
