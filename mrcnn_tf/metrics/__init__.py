"""What detections are worth: COCO's figures, boundary AP, PASCAL VOC's, and which errors cost how much. Numpy and pycocotools."""
