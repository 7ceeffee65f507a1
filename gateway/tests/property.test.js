import { start } from './property.js'

start([''], 200)
