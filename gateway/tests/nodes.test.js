import { start } from './property.js'

start(['a', 'b'], 80)
